//! Appends without a report yet.

/// What is under way, by token. A token is a place in the list, so nothing is hashed and nothing grows with time.
#[derive(Debug)]
pub(crate) struct UnderWay<T> {
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for UnderWay<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> UnderWay<T> {
    /// Notes an append; the report will carry the token.
    pub fn put(&mut self, append: T) -> u64 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(append);
        place as u64
    }

    /// Takes back what a report speaks of; `None` for a token that nobody waits for.
    pub fn take(&mut self, token: u64) -> Option<T> {
        let place = usize::try_from(token).ok()?;
        let taken = self.places.get_mut(place)?.take()?;
        self.free.push(place);
        Some(taken)
    }

    /// What a token stands for.
    pub fn get(&self, token: u64) -> Option<&T> {
        self.places.get(usize::try_from(token).ok()?)?.as_ref()
    }

    /// How many reports are missing.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}
