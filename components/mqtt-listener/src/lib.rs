//! MQTT 3.1.1 and 5 listener for devices, with acknowledgements after the durable write.
