//! Pictures out: tiled multi-resolution TIFF, PNG, metadata.
