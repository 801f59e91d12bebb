"""What a model looks at: maps of an image that say which parts its answer to a text rests on."""
