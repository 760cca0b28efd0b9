"""How bytes come: policy between archives and blocks, written against their protocols only."""
