"""TCIA and other NBIA servers, and the open buckets of IDC that hold the same series."""
