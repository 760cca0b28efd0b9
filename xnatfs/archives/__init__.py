"""Where the data is: one module an archive, each behind the ``Archive`` protocol of ``base.py``."""
