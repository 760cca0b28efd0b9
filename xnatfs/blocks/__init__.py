"""What is kept: blocks in memory and on disk, behind the ``BlockCache`` protocol of ``base.py``."""
