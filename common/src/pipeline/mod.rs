//! The pipeline file: parsing, checking, expanding.
