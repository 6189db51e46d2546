//! The store's metrics, read when they are scraped.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{LaneStatus, Outbox, Refusal};
use crate::telemetry::Metrics;

#[derive(Debug)]
struct Scrape(Outbox);

type OfLane = (&'static str, &'static str, MetricType, fn(&LaneStatus) -> u64);

const LANES: [OfLane; 9] = [
    ("selvedge_outbox_accepted_bytes", "Payload bytes accepted", MetricType::Counter, |l| l.accepted_bytes),
    ("selvedge_outbox_disk_bytes", "Bytes that the lane takes on disk, preallocation included", MetricType::Gauge, |l| l.disk_bytes),
    ("selvedge_outbox_quota_bytes", "Bytes that the lane may take on disk; in memory, of one that stores nothing", MetricType::Gauge, |l| {
        l.quota_bytes
    }),
    ("selvedge_outbox_locked_segments", "Segments that are sealed with a key that is not there: kept, and not sent", MetricType::Gauge, |l| {
        l.locked_segments as u64
    }),
    (
        "selvedge_outbox_held_bytes",
        "Bytes of records that wait in memory before they are written (spillAfter) or are on their way (passthrough)",
        MetricType::Gauge,
        |l| l.held_bytes,
    ),
    ("selvedge_outbox_passing", "Records of lanes that store nothing (passthrough) that are on their way", MetricType::Gauge, |l| l.passing),
    ("selvedge_outbox_spilled_bytes", "Bytes of records of lanes with spillAfter that were written after all", MetricType::Counter, |l| {
        l.spilled_bytes
    }),
    ("selvedge_outbox_spared_bytes", "Bytes of records of lanes with spillAfter that never touched the disk", MetricType::Counter, |l| {
        l.spared_bytes
    }),
    (
        "selvedge_outbox_pieces",
        "Stretches that are read or finished out of order (order: newest), of all destinations; at 1024 of one, its oldest records go first",
        MetricType::Gauge,
        |l| l.pieces,
    ),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let written = self.0.write_counts();
        let (compactions, saved, aggregated) = self.0.compaction_counts();
        for (name, help, value) in [
            ("selvedge_outbox_written_bytes", "Bytes written to segments and cursors", written.bytes),
            (
                "selvedge_outbox_flash_bytes",
                "The same in whole blocks of 4 KiB, as often as each is written: what the medium wears by",
                written.flash_bytes,
            ),
            ("selvedge_outbox_syncs", "Syncs of segments", written.syncs),
            ("selvedge_outbox_sync_failures", "Syncs of segments that failed", written.failed_syncs),
            ("selvedge_outbox_compactions", "Segments written by compaction", compactions),
            ("selvedge_outbox_compaction_saved_bytes", "Bytes on disk saved by compaction", saved),
            ("selvedge_outbox_aggregated_records", "Records merged into others, once for each destination", aggregated),
        ] {
            ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        let lanes = self.0.status();
        for (name, help, kind, read) in LANES {
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for lane in &lanes {
                let labels = [("lane", lane.lane.as_str())];
                let of_lane = metric.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(read(lane)).encode(of_lane)?,
                    _ => ConstGauge::new(i64::try_from(read(lane)).unwrap_or(i64::MAX)).encode(of_lane)?,
                }
            }
        }
        let help = "Records that a lane refused: at its quota, at a bound below it (held), taking nothing (shut), too large, or \
                    unable to write; of one that stores nothing: the link not up, broken on the way (withdrawn), no answer in time (late), refused (peer)";
        let mut metric = encoder.encode_descriptor("selvedge_outbox_refused", help, None, MetricType::Counter)?;
        for lane in &lanes {
            for (reason, count) in Refusal::ALL.iter().zip(lane.refused) {
                ConstCounter::new(count).encode(metric.encode_family(&[("lane", lane.lane.as_str()), ("reason", reason.as_str())])?)?;
            }
        }
        Ok(())
    }
}

impl Outbox {
    /// Adds the store's metrics to the node's; once per node.
    pub fn register_metrics(&self, metrics: &Metrics) {
        metrics.register(|registry| registry.register_collector(Box::new(Scrape(self.clone()))));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::time::ManualClock;

    #[test]
    fn bytes_accepted_and_bytes_written_are_told() {
        let outbox = Outbox::simulated(&["default", "other"], Arc::new(ManualClock::default()));
        let metrics = Metrics::new();
        outbox.register_metrics(&metrics);
        let text = metrics.render_text();
        for line in [
            "# TYPE selvedge_outbox_flash_bytes_total counter",
            "selvedge_outbox_accepted_bytes_total{lane=\"default\"} 0",
            "selvedge_outbox_held_bytes{lane=\"other\"} 0",
            "selvedge_outbox_pieces{lane=\"other\"} 0",
            "selvedge_outbox_refused_total{lane=\"other\",reason=\"shut\"} 0",
            "selvedge_outbox_spared_bytes_total{lane=\"other\"} 0",
            "selvedge_outbox_locked_segments{lane=\"default\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        outbox.close();
    }
}
