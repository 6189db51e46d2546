//! Messages and services of the Dapr API, generated from the definitions in this folder by `proto/generate`.

/// `dapr.proto`.
pub mod dapr {
    /// `dapr.proto`.
    pub mod proto {
        /// `dapr.proto.common`.
        pub mod common {
            /// `dapr.proto.common.v1`.
            #[allow(clippy::all, missing_docs)]
            pub mod v1 {
                include!("generated/dapr.proto.common.v1.rs");
            }
        }
        /// `dapr.proto.runtime`.
        pub mod runtime {
            /// `dapr.proto.runtime.v1`.
            #[allow(clippy::all, missing_docs)]
            pub mod v1 {
                include!("generated/dapr.proto.runtime.v1.rs");
            }
        }
    }
}

pub use dapr::proto::{common::v1 as common, runtime::v1 as runtime};
