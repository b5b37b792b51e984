"""Hyper-parameter searches: what is searched, the shared study, its workers, and what comes out."""
