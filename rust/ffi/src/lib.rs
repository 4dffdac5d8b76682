//! The C boundary of icx: exported functions, the handle table, result codes. It holds no logic of its own.
//!
//! # Conventions
//! - Functions answer with an `i32`: zero or above is success (a handle, a count, a length), below zero is one of
//!   [`code::Code`].
//! - Order of arguments: receiver, inputs, outputs. Buffers are a pointer and a `u32` length in bytes, belong to the
//!   caller, and are used only during the call. A NULL pointer goes with length 0 alone.
//! - Structured input and output is UTF-8 JSON in camelCase; unknown fields are errors.
//! - Outputs are written on success only, and whole: one that does not fit is `ICX_EBUFFER`.
//! - `err`, `err_cap`: an optional buffer for the reason of a failure: `u32` length of the text in bytes, `i32` errno
//!   of the operating system or 0 (both little endian), then UTF-8 text, cut at a character where it does not fit.
//! - Handles are generational ids of one table. A panic is caught, answers `ICX_EPANIC`, and so does every handle
//!   that the call had used from then on; such a handle can still be closed.

pub mod abi;
pub mod code;

#[cfg(feature = "afxdp")]
mod afxdp;
mod control;
mod device;
mod engine;
mod error;
mod events;
mod guard;
mod handle;
mod identity;
mod io;
mod json;
mod netstack;
mod process;
mod proxy;
