"""Programs that make the committed artefacts, kept so that they can be made again."""
