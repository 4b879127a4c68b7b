"""Documents as token ids: one vocabulary, text ids, image codes, markup and its grammar, CM3 masking."""
