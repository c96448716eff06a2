//! The log. Written below.
