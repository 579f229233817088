"""Files of Mistral's files API: uploads in pieces, their list, and their removal."""
