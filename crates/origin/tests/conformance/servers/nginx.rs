//! nginx: plain files over HTTP, with ETags made of time and size.

use std::process::Command;

use longshore_origin::{OriginOptions, Origins};

use super::{Server, free_address, system_program};
use crate::prepared::{Capabilities, Prepared, of_folder};

pub async fn nginx() -> Prepared {
    let address = free_address();
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    let files = base.join("files");
    std::fs::create_dir(&files).unwrap();
    let base_text = base.display();
    // Started as root it would drop to a user who may not read the temporary folder.
    let config = format!(
        "daemon off; master_process off; pid {base_text}/pid; error_log stderr;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {base_text}/a; proxy_temp_path {base_text}/b; fastcgi_temp_path {base_text}/c;
            uwsgi_temp_path {base_text}/d; scgi_temp_path {base_text}/e;
            server {{ listen {address}; root {}; }}
        }}",
        files.display()
    );
    std::fs::write(base.join("nginx.conf"), config).unwrap();
    let mut command = Command::new(system_program("nginx"));
    command.arg("-p").arg(base).arg("-c").arg(base.join("nginx.conf")).args(["-e", "stderr"]);
    let server = Server::start(command, address, &base.join("log")).await;
    let (put, remove) = of_folder(&files);
    let prefix = server.url();
    Prepared {
        origins: Origins::new(OriginOptions::default()).unwrap(),
        options: OriginOptions::default(),
        prefix,
        put,
        remove,
        capabilities: Capabilities {
            // It serves files only.
            lists: false,
            // It redirects to the folder with a slash and answers 403 there.
            folder_is_no_object: false,
            // Its ETag is the second of the change and the size.
            versions_are_exact: false,
            ..Capabilities::default()
        },
        _keep: Box::new((server, folder)),
    }
}
