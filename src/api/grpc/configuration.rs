//! Configuration over gRPC: a subscription lives as long as its stream.

use std::sync::Arc;

use selvedge_proto::common::ConfigurationItem as Item;
use selvedge_proto::runtime::{
    GetConfigurationRequest, GetConfigurationResponse, SubscribeConfigurationRequest, SubscribeConfigurationResponse,
    UnsubscribeConfigurationRequest, UnsubscribeConfigurationResponse,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Response, Status};

use super::{Answer, aged, metadata};
use crate::block::Blocks;
use crate::component::{ConfigurationHandler, ConfigurationItems, Fut, NotTaken};

/// Changes on their way to one stream beyond what HTTP/2's own window holds; then they wait and are told as one.
const BUFFERED: usize = 4;

/// What the transport sends.
pub(super) type Changes = ReceiverStream<Result<SubscribeConfigurationResponse, Status>>;

fn items(items: ConfigurationItems) -> std::collections::HashMap<String, Item> {
    items.into_iter().map(|(k, i)| (k, Item { value: i.value, version: i.version, metadata: i.metadata.into_iter().collect() })).collect()
}

pub(super) async fn get(blocks: &Blocks, request: GetConfigurationRequest) -> Answer<GetConfigurationResponse> {
    let found = blocks.configuration(&request.store_name, &request.keys, &metadata(request.metadata)).await?;
    Ok(aged(GetConfigurationResponse { items: items(found.value) }, found.age))
}

pub(super) async fn unsubscribe(blocks: &Blocks, request: UnsubscribeConfigurationRequest) -> Answer<UnsubscribeConfigurationResponse> {
    let ended = blocks.unsubscribe_configuration(&request.store_name, &request.id).await?;
    Ok(Response::new(UnsubscribeConfigurationResponse { ok: ended.is_ok(), message: ended.err().unwrap_or_default() }))
}

struct ToStream {
    id: String,
    answers: mpsc::Sender<Result<SubscribeConfigurationResponse, Status>>,
    /// Ends the stream when the subscription has ended.
    _end: DropGuard,
}

impl ConfigurationHandler for ToStream {
    fn changed<'a>(&'a self, changed: ConfigurationItems) -> Fut<'a, Result<(), NotTaken>> {
        Box::pin(async move {
            let message = SubscribeConfigurationResponse { id: self.id.clone(), items: items(changed) };
            self.answers.send(Ok(message)).await.map_err(|_| NotTaken)
        })
    }
}

/// Opens a stream: its first message has the subscription's id, each later one what changed.
pub(super) async fn subscribe(blocks: &Blocks, request: SubscribeConfigurationRequest, mut stop: watch::Receiver<bool>) -> Answer<Changes> {
    let (answers, stream) = mpsc::channel(BUFFERED);
    let closed = || Status::cancelled("the stream is closed");
    // The first message stands before the first change.
    let place = answers.clone().reserve_owned().await.map_err(|_| closed())?;
    let ended = CancellationToken::new();
    let handler = |id: &str| {
        let end = ended.clone().drop_guard();
        Arc::new(ToStream { id: id.to_owned(), answers: answers.clone(), _end: end }) as Arc<dyn ConfigurationHandler>
    };
    let store = request.store_name;
    let id = blocks.subscribe_configuration(&store, request.keys, &metadata(request.metadata), handler).await?;
    place.send(Ok(SubscribeConfigurationResponse { id: id.clone(), ..SubscribeConfigurationResponse::default() }));
    let blocks = blocks.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = answers.closed() => {}
            () = ended.cancelled() => {}
            _ = stop.wait_for(|s| *s) => {}
        }
        // It may have been ended by its id already.
        let _ = blocks.unsubscribe_configuration(&store, &id).await;
    });
    Ok(Response::new(ReceiverStream::new(stream)))
}
