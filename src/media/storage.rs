//! Where the bytes are: a local folder, or a bucket of an S3-compatible store. The only home of `object_store`.
//!
//! Guarantee: an object is there as a whole or not at all, under whichever crash. What a dead process left half-written in a
//! local folder goes with [`Storage::delete`]; in a bucket, a rule for incomplete multipart uploads removes it.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt};
use secrecy::ExposeSecret;

use crate::config::MediaConfig;

/// What is held in memory of a file on its way to a bucket: the least that S3 takes as a part.
const BUCKET_PART: usize = 5 * 1024 * 1024;
/// The same for a local folder.
const LOCAL_PART: usize = 256 * 1024;

/// Why the storage did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// There is no such object.
    #[error("not in the storage")]
    NotFound,
    /// The storage is away, refuses, or cannot be written.
    #[error("the storage failed: {0}")]
    Failed(String),
}

impl From<object_store::Error> for StorageError {
    fn from(fault: object_store::Error) -> Self {
        match fault {
            object_store::Error::NotFound { .. } => Self::NotFound,
            fault => Self::Failed(fault.to_string()),
        }
    }
}

enum Place {
    /// Made and opened when it is first used: not every process has files to keep.
    Folder {
        root: PathBuf,
        opened: OnceLock<Arc<LocalFileSystem>>,
    },
    Bucket {
        store: Arc<dyn ObjectStore>,
        prefix: Path,
    },
}

/// The place of all files.
pub struct Storage(Place);

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Folder { root, .. } => write!(f, "Storage({})", root.display()),
            Place::Bucket { .. } => f.write_str("Storage(s3)"),
        }
    }
}

impl Storage {
    /// The storage that the settings name. Nothing is read or written yet.
    ///
    /// # Errors
    /// When the settings of a bucket do not fit together.
    pub fn open(config: &MediaConfig) -> Result<Self, StorageError> {
        if let Ok(root) = config.url.to_file_path() {
            return Ok(Self(Place::Folder { root, opened: OnceLock::new() }));
        }
        let options = config.options.iter().map(|(name, value)| (name.as_str(), value.expose_secret()));
        let (store, prefix) = object_store::parse_url_opts(&config.url, options)?;
        Ok(Self(Place::Bucket { store: store.into(), prefix }))
    }

    fn at(&self, key: &str) -> Result<(Arc<dyn ObjectStore>, Path), StorageError> {
        match &self.0 {
            Place::Folder { root, opened } => {
                let store = match opened.get() {
                    Some(store) => Arc::clone(store),
                    None => {
                        let failed = |fault: std::io::Error| {
                            StorageError::Failed(format!("the folder {} cannot be made: {fault}", root.display()))
                        };
                        std::fs::create_dir_all(root).map_err(failed)?;
                        // A file that was accepted is there after a power cut, too.
                        let store = LocalFileSystem::new_with_prefix(root)?.with_fsync(true);
                        Arc::clone(opened.get_or_init(|| Arc::new(store)))
                    }
                };
                Ok((store, Path::from(key)))
            }
            Place::Bucket { store, prefix } => {
                Ok((Arc::clone(store), Path::from_iter(prefix.parts().chain(Path::from(key).parts()))))
            }
        }
    }

    /// Begins an object. It exists once [`Writer::finish`] answers.
    ///
    /// # Errors
    /// When the storage cannot be used.
    pub fn write(&self, key: &str) -> Result<Writer, StorageError> {
        let (store, path) = self.at(key)?;
        let part = match self.0 {
            Place::Folder { .. } => LOCAL_PART,
            Place::Bucket { .. } => BUCKET_PART,
        };
        Ok(Writer { store, path, part, waiting: BytesMut::new(), upload: None })
    }

    /// The bytes of an object, or those in `range`. Poll the stream on the process-wide runtime.
    ///
    /// # Errors
    /// When there is no such object, or the storage does not answer.
    pub async fn read(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
        let (store, path) = self.at(key)?;
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let found = store.get_opts(&path, options).await?;
        Ok(found.into_stream().map_err(StorageError::from).boxed())
    }

    /// Removes an object and what is left of one that was never finished. One that is not there is fine.
    ///
    /// # Errors
    /// When the storage does not answer.
    pub async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let (store, path) = self.at(key)?;
        if let Place::Folder { opened, .. } = &self.0
            && let Some(folder) = opened.get()
        {
            // Where the file grew before it got its name.
            let mut unfinished = folder.path_to_filesystem(&path)?.into_os_string();
            unfinished.push("#1");
            match tokio::fs::remove_file(unfinished).await {
                Err(fault) if fault.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StorageError::Failed(fault.to_string()));
                }
                _ => {}
            }
        }
        match store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(fault) => Err(fault.into()),
        }
    }
}

/// An object being written, with one part of it in memory at the most.
pub struct Writer {
    store: Arc<dyn ObjectStore>,
    path: Path,
    part: usize,
    waiting: BytesMut,
    upload: Option<Box<dyn MultipartUpload>>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl Writer {
    /// Adds `chunk`.
    ///
    /// # Errors
    /// When the storage does not take it; the object is then given up.
    pub async fn write(&mut self, mut chunk: Bytes) -> Result<(), StorageError> {
        while !chunk.is_empty() {
            let room = self.part.saturating_sub(self.waiting.len()).min(chunk.len());
            self.waiting.extend_from_slice(&chunk.split_to(room));
            if self.waiting.len() >= self.part {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), StorageError> {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => self.upload.insert(self.store.put_multipart(&self.path).await?),
        };
        let part = std::mem::take(&mut self.waiting).freeze();
        Ok(upload.put_part(part.into()).await?)
    }

    /// Ends the object: from now on it exists.
    ///
    /// # Errors
    /// When the storage does not take it; the object is then given up.
    pub async fn finish(mut self) -> Result<(), StorageError> {
        if self.upload.is_none() {
            let whole = std::mem::take(&mut self.waiting).freeze();
            self.store.put(&self.path, whole.into()).await?;
            return Ok(());
        }
        if !self.waiting.is_empty() {
            self.flush().await?;
        }
        if let Some(mut upload) = self.upload.take() {
            upload.complete().await?;
        }
        Ok(())
    }

    /// Gives the object up.
    pub async fn abort(mut self) {
        if let Some(mut upload) = self.upload.take()
            && let Err(fault) = upload.abort().await
        {
            tracing::debug!(%fault, "media: an unfinished upload could not be taken back");
        }
    }
}
