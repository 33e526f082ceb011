"""The dashboard's server: sign-in, pages, `/api` and `/metrics`. The only home of NiceGUI and what comes with it."""
