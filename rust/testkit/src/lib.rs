//! What the privileged tests put between and beside two nodes: `icx-relay`, a network that loses, delays, repeats and
//! damages datagrams as it is told, and `icx-adversary`, which sends a node what an attacker could.
//!
//! Nothing here holds a key: the adversary knows what it has captured.

pub mod args;
pub mod capture;
pub mod frames;
pub mod impairment;
pub mod pace;
pub mod random;
