"""ADE20K: the 150 classes of SceneParsing, and the full set with its parts."""
