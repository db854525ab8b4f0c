"""What a backbone sees: clouds coloured by its features, as ply and as pictures (`command` is the way in)."""
