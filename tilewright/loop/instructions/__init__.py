"""The tensor intrinsics that come with the compiler, one file per family of processors. They are declared as a user's own
would be: nothing else knows them."""
