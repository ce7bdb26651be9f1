"""Variants of a VCF to scores; `scorer.py` is the place to begin."""

from domains.dna.variants.scorer import VariantScorer
from domains.dna.variants.vcf import STATUSES, TABLE_COLUMNS, Variant, check_vcf
from domains.dna.variants.windows import VariantWindows

__all__ = ["STATUSES", "TABLE_COLUMNS", "Variant", "VariantScorer", "VariantWindows", "check_vcf"]
