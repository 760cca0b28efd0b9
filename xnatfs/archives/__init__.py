"""Where the data is: one module or package an archive, each behind the ``Archive`` protocol of ``base.py``."""
