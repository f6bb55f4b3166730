//! Members, their ids and their JSON.
