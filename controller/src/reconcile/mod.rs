//! Custom resources: what they ask for, carried out and written back as status.
