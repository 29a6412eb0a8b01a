//! Work for the threads that may block.

pub use railyard_service::task::blocking;
