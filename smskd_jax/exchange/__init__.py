"""Networks in from elsewhere and out to elsewhere: files of other frameworks."""
