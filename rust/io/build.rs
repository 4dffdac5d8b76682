//! Compiles the XDP programs for the feature `afxdp`.

use std::env;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

const PROGRAMS: [&str; 2] = ["underlay", "virtual"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=bpf");
    if env::var_os("CARGO_FEATURE_AFXDP").is_none() {
        return;
    }
    let variable = |name: &str| env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (manifest, out) = (variable("CARGO_MANIFEST_DIR"), variable("OUT_DIR"));
    let architecture = variable("CARGO_CFG_TARGET_ARCH");
    for program in PROGRAMS {
        let status = Command::new("clang")
            .current_dir(Path::new(&manifest).join("bpf"))
            .args(["-target", "bpf", "-O2", "-g", "-Wall", "-Werror", "-fdebug-compilation-dir=.", "-c"])
            // Where Debian has <asm/types.h>; others have it in /usr/include.
            .arg(format!("-I/usr/include/{architecture}-linux-gnu"))
            .arg(format!("{program}.c"))
            .arg("-o")
            .arg(Path::new(&out).join(format!("{program}.o")))
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => panic!(
                "clang could not compile bpf/{program}.c ({status}): its errors are above; headers that it misses are \
                 in the Debian packages libbpf-dev and linux-libc-dev"
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => panic!(
                "clang is missing, and the feature afxdp takes it to compile XDP programs: \
                 `apt-get install clang libbpf-dev`"
            ),
            Err(error) => panic!("cannot run clang: {error}"),
        }
    }
}
