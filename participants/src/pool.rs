//! Connections to a server, some of one kind. A connection is used by one at a time, and one that was left in the middle of
//! something is closed: who knows what it was in the middle of.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::resource::Unavailable;

/// Opens connections of one kind.
pub(crate) trait Dial: Send + Sync {
    /// An open connection. Dropped it is closed.
    type Connection: Send;

    /// Connects, and reads back what the session must be set to.
    fn dial(&self) -> impl Future<Output = Result<Self::Connection, Unavailable>> + Send;

    /// Whether it is known to be of no use any more.
    fn is_closed(connection: &Self::Connection) -> bool;
}

/// Some connections of one kind.
pub(crate) struct Pool<D: Dial> {
    dial: D,
    room: Semaphore,
    idle: Mutex<Vec<D::Connection>>,
}

/// A connection in use. Dropped without [`Lease::give_back`] it is closed.
pub(crate) struct Lease<'a, D: Dial> {
    pool: &'a Pool<D>,
    connection: D::Connection,
    _room: SemaphorePermit<'a>,
}

impl<D: Dial> Pool<D> {
    /// At most so many. None is opened yet.
    pub fn new(dial: D, most: usize) -> Self {
        Self { dial, room: Semaphore::new(most), idle: Mutex::default() }
    }

    /// Waits for room, and opens a connection if none is idle.
    pub async fn lease(&self) -> Result<Lease<'_, D>, Unavailable> {
        let room = self.room.acquire().await.map_err(|_| Unavailable::new("connecting", "closed"))?;
        let connection = match self.idle() {
            Some(connection) => connection,
            None => self.dial.dial().await?,
        };
        Ok(Lease { pool: self, connection, _room: room })
    }

    /// One that takes no room: for as long as it must be kept.
    pub async fn keep_one(&self) -> Result<D::Connection, Unavailable> {
        match self.idle() {
            Some(connection) => Ok(connection),
            None => self.dial.dial().await,
        }
    }

    /// The connection is as it was: the next one may have it.
    pub fn put(&self, connection: D::Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    fn idle(&self) -> Option<D::Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|connection| !D::is_closed(connection))
    }
}

impl<D: Dial> Lease<'_, D> {
    /// The connection is as it was: the next one may have it.
    pub fn give_back(self) {
        self.pool.put(self.connection);
    }
}

impl<D: Dial> std::ops::Deref for Lease<'_, D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        &self.connection
    }
}

impl<D: Dial> std::ops::DerefMut for Lease<'_, D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        &mut self.connection
    }
}
