//! MQTT client components: pub/sub, uplink and binding over MQTT 3.1.1 and 5.
