"""Makes the embedded tiny CLIP and the demo photos from Noto Color Emoji glyphs.

`python -m scripts.tiny_model.train` trains the weights, `python -m scripts.tiny_model.scenes` composes
the demo photos and `python -m scripts.tiny_model.measure` prints the table of figures. All are seeded.
"""
