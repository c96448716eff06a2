//! undertone
