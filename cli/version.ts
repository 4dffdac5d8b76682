/** The version of the command line and the library, as in `deno.json` and `rust/Cargo.toml`; a test compares. */
export const VERSION = "0.1.0";
