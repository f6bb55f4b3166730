//! The bbolt file: pages, a reader, a checker and a bulk writer.
