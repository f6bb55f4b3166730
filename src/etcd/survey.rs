//! One walk over a database, one value.
