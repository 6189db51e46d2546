//! Generates the Rust code of the definitions in `proto/`, without protoc.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the crate stands in proto/generate")?;
    let out = root.join("src/generated");
    std::fs::create_dir_all(&out)?;
    let files = protox::compile(["dapr/proto/common/v1/common.proto", "dapr/proto/runtime/v1/appcallback.proto", "dapr/proto/runtime/v1/dapr.proto"], [root])?;
    tonic_prost_build::configure().build_client(true).build_server(true).bytes(".").out_dir(&out).compile_fds(files)?;
    Ok(())
}
