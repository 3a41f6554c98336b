//! Gives the fake driver the name under which programs look for the real one.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Once it is loaded by its absolute path, the dynamic linker answers `dlopen("libcuda.so")` with it, before it
    // looks into any folder: a real driver on the machine cannot win, and no file of this name lies in `target/`.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
}
