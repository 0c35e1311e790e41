//! What a tunnel does to packet bytes: segmentation, coalescing, checksums and batch AEAD.
