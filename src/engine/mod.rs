//! One image: plan, denoise, decode; synchronous, tokio-free.
