"""Many studies: the model is loaded once per worker, one bad study never stops the rest, nothing is done twice."""
