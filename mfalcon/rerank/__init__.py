"""Reranking: the best candidates in another order, so that those at the top are less alike. numpy only, no torch."""
