"""Tasks made of symbols, without files, whose answers show what a layer can do. Read `tasks.py` first.

    tasks.py       SelectiveCopying, InductionHeads, AssociativeRecall, Phonebook: draw any number of sequences at once
    datasets.py    a task as a `Corpus`: seeded splits of records, loss on the answers alone
    tokenizer.py   ids are the symbols
    scoring.py     share of answer symbols, and of whole answers, that are right
"""
