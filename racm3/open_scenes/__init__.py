"""Open Scenes: a world of cut-outs from many hands, on any background, at any place, in many wordings."""
