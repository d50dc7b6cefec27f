//! The node agent: the one privileged part, opt-in. Cuts a node off or slows it, and heals it by a timer of its own.
