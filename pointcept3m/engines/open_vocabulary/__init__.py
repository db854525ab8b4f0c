"""What is done with a distilled model and words: vocabularies, scores, ensembles, queries."""
