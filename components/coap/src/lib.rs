//! CoAP endpoint and server for devices.
