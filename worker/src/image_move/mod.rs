//! Container images on their way between the engine and the cache, as a configuration and layers.
//!
//! The engine only knows whole archives. They are taken apart so that a layer travels once, whoever needs it:
//! [`split`] finds the layers in what `docker save` writes, [`archive`] makes what `docker load` reads.

pub mod archive;
pub mod config;
pub mod pack;
pub mod root;
pub mod split;
