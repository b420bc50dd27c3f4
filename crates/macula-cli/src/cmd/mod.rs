//! One module per command.

pub(crate) mod call;
pub(crate) mod config;
pub(crate) mod gateway;
pub(crate) mod keygen;
pub(crate) mod lab;
pub(crate) mod netcheck;
pub(crate) mod ping;
pub(crate) mod publish;
pub(crate) mod realm;
pub(crate) mod serve;
#[cfg(feature = "sim")]
pub(crate) mod sim;
pub(crate) mod status;
pub(crate) mod subscribe;
pub(crate) mod turn;
