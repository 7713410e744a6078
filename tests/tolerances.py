"""How far floating-point results may lie apart, one line a comparison with its reason."""

from __future__ import annotations

# Embeddings of unit length; cosines between the two sides' rows.
# The same float32 sums in another order and with folded norms: measured 0.9999999 on a trained model.
OPENVINO_FP32_COSINE = 0.99999
# bfloat16 keeps 8 bits: 0.4 % a product, averaged out over long sums. Measured 0.9998 (trained tiny model,
# least of 600 views) and 0.99995 (random ViT-B-32); the tests' random ResNet, where most of what views have
# in common is taken away and the error is not, comes to 0.998. A wrong layer falls far below.
BF16_COSINE = 0.996

# One encoder, the same view in other company, on another number of threads: every pass has one shape and one
# thread, so the sums are the same to the bit.
SAME_PASS = 0.0
